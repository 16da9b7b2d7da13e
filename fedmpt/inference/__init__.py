"""A tuned model on images of one's own: nothing here trains, and nothing that trains is imported."""
