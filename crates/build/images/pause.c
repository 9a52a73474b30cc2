/*
 * The first process of every pod. It holds the pod's namespaces, takes over processes whose parents have gone, and
 * ends when it is told to.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) {
  (void)number;
  _exit(EXIT_SUCCESS);
}

static void reap(int number) {
  (void)number;
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

static int handle(int number, void (*handler)(int), int flags) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
  sigemptyset(&action.sa_mask);
  return sigaction(number, &action, NULL);
}

int main(void) {
  if (handle(SIGINT, end, 0) < 0 || handle(SIGTERM, end, 0) < 0 || handle(SIGCHLD, reap, SA_NOCLDSTOP) < 0) {
    return EXIT_FAILURE;
  }
  for (;;) {
    pause();
  }
}
