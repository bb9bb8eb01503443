"""Wrong input to public functions and to the command line, as users give it: in a process where no
run-time type checker comes first."""
