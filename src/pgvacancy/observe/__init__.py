"""Looking at a server, its poolers, its log and its host. Reads only; decides nothing."""
