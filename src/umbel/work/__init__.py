"""What hosts clients, wherever: in this process, in workers, in the children of nodes, at relays."""
