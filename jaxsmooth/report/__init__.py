"""What a sweep found, for people: certified-accuracy curves, tables and plots."""
