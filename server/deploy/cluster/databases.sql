-- PostgreSQL's image runs this once, on an empty volume. It has created the database `staddle` already.
CREATE DATABASE seaweedfs OWNER staddle;
