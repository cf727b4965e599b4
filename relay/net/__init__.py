"""What Twisted calls: protocols, transports, wake-ups, upstream links, splice."""
