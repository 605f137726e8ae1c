"""What each product needs, one module per product. Imports schemas only."""
