"""How the model's products and attention are computed; never what they compute."""
