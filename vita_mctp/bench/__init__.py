"""Speed studies. Each is a function that returns a `result.Study`; `render` makes a table, JSON and a plot of any.

Models are loaded as a user would, or drawn at random in a known shape (`subjects`); nothing is ever written to them.
Beside each figure stands what the machine's memory or arithmetic, measured in the same run (`machine`), would allow.
"""
