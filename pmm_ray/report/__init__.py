"""What a person looks at: overlay pictures, tables, curves."""
