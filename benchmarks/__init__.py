"""What jaxloss costs, and how exact it is, beside its peers: programs that anyone can rerun (see README.md here)."""
