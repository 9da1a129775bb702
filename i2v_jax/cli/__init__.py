"""What people run, one file each: `i2v sample`, `i2v train`, `i2v evaluate`; the scripts at the top of the checkout run
the same."""
