"""The exNode store on depots: what is written there, how, and how it comes back."""
