"""What the package is measured on: tasks to train, shapes to time, and the report made from both."""
