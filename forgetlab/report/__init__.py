"""Views of what is stored: tables, curves, pictures, MLflow."""
