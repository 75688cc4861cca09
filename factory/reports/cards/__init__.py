"""What people read of an artifact: its card, with the licence, references and figures on it."""
