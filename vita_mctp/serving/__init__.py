"""Ways to reach the model from outside: the page."""

KEY_VARIABLE = "VITA_MCTP_API_KEY"
"""Environment variable that holds a key of the server's API."""
