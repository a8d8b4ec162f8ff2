"""What methods remember between steps: averages of parameters, queues, banks, centres; schedules."""
