"""What every room of the client stands on, and the server shares: figures, threads, files and values from people, standard streams."""
