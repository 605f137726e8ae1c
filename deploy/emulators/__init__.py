"""Programs that behave like the products and like Entra. They import nothing of ours."""
