"""Measures any s3prl upstream on SUPERB tasks."""
