"""Private servers and faults that can be switched on: the demo, the tests and the users share them."""
