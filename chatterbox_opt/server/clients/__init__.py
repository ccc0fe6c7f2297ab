"""What each kind of client sends and gets: OpenAI's API, SillyTavern's calls, Wyoming."""
