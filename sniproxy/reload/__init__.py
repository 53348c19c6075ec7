"""From files that change to processes that agree: watching, reading, and handing out generations."""
