"""How long backups live: retention policies, holds, deletion."""
