"""The process that has one model loaded. It reaches neither the database nor Redis and holds no credentials."""
