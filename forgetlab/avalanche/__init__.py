"""The only room that imports Avalanche: its API in one place, our data as its streams, its own plug-ins."""
