"""What a run costs, known before a machine is rented: ahead-of-time compilation and a roofline."""
