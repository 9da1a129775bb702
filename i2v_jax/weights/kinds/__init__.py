"""What files are, by the names that the field has for them: one table, read by `inspect` and by every refusal."""
