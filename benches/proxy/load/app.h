// The app server as a library, for a load generator that runs it in its own thread.

void app_open(int eu_port, int us_port);
// Serves what is ready, and waits for at most `timeout` milliseconds (-1: without limit).
void app_serve(int timeout);
// Readable when `app_serve` has something to do.
int app_descriptor(void);
