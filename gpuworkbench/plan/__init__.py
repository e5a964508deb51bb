"""What a run will take, known before it starts: parameter counts and bytes by part. Predicted, never measured."""
