"""The whole stack on one machine: private, real PostgreSQL and Redis servers, and every process of the project."""
