"""Several tokens of a row in one pass: who drafts them, and what of a draft the model itself would have drawn."""
