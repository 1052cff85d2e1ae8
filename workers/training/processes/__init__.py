"""The processes of a job, and what they say to the supervisor and to each other."""
