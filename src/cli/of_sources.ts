/** Verbs that need the sources, where the launcher and `deno task` carry them out; here they are listed, and say so. */
import { programForm } from "./self.ts";
import { say, type Verb } from "./verb.ts";

const ofSources = (name: string, does: string, then: string): Verb => ({
  summary: `${does} (in a clone of the sources)`,
  // deno-lint-ignore require-await -- as every verb
  async run() {
    say(
      programForm === "source"
        ? `troupe ${name}: ./troupe ${name} or deno task ${name} ${then}, with the permissions that takes`
        : `troupe ${name}: this comes with the sources; in a clone of them ./troupe ${name} ${then}`,
    );
    return 2;
  },
});

export const test: Verb = ofSources("test", "run the tests, or the test files named", "runs the tests");
export const compile: Verb = ofSources("compile", "put all of it into one file, dist/troupe", "makes the file");
