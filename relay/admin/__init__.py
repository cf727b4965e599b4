"""What an operator looks at: health, metrics, API, page."""
