/** Registers a case that cannot run as an ignored test, with the reason printed. */
export function skip(name: string, reason: string): void {
  console.log(`skipped: ${name}: ${reason}`);
  Deno.test({ name, ignore: true, fn: () => {} });
}

/** The message of what `body` throws, or nothing. */
export function messageOf(body: () => unknown): string | undefined {
  try {
    body();
  } catch (error) {
    return (error as Error).message.replaceAll(/\s*\n\s*/g, " ");
  }
}
