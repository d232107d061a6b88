"""What each dialect's configuration file says about the model, read and written."""
