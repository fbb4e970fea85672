"""Settings: one rule table for code, URL, environment and file."""
