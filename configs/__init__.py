"""Config files of the commands; a package, so that no other folder called `configs` is imported in its place."""
