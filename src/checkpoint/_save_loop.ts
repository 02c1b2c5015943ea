/** Saves checkpoint after checkpoint into a folder until it is killed, saying each that is committed. A test's child. */
import { save, splitAxis } from "./_testing.ts";
import { newestUsable, retireOld } from "./catalog.ts";

const [folder] = Deno.args;
let step = 0;
{
  using newest = await newestUsable(folder, { onSkipped: () => {} });
  step = newest?.step ?? 0;
}
while (true) {
  step++;
  await save(folder, step, splitAxis(step % 2, 2), 2);
  console.log(step);
  if (step % 7 === 0) await save(folder, step, splitAxis(0, 3), 3); // replaced by one of the same step
  await retireOld(folder, 2, { upTo: step });
}
