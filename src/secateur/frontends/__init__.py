"""What users bring, by name: models, weights and data."""
