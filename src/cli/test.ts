/** `troupe test`: the tests come with the sources, where the launcher and `deno task test` run them. */
import { programForm } from "./self.ts";
import { say, type Verb } from "./verb.ts";

export const test: Verb = {
  summary: "run the tests, or the test files named (in a clone of the sources)",
  // deno-lint-ignore require-await -- as every verb
  async run() {
    say(
      programForm === "source"
        ? "troupe test: ./troupe test or deno task test runs the tests, with the permissions they need"
        : "troupe test: the tests come with the sources; in a clone of them ./troupe test runs them",
    );
    return 2;
  },
};
