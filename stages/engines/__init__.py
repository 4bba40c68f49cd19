"""Networks that several stages share."""
