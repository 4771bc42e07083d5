"""Methods that change a picture, or what it is asked to be, on top of sampling."""
