import { assertEquals } from "@std/assert";
import { onceInAWhile } from "./interrupt.ts";
import { denoCommand } from "./self.ts";

Deno.test("onceInAWhile() takes a burst for one, and later ones as they come", () => {
  let time = 5;
  let calls = 0;
  const call = onceInAWhile(() => calls++, 250, () => time);
  const after = (milliseconds: number) => {
    time += milliseconds;
    call();
    return calls;
  };
  assertEquals([after(0), after(1), after(248), after(1), after(100), after(1000)], [1, 1, 1, 2, 2, 3]);
});

Deno.test("onInterrupt() hears a signal instead of dying of it", async () => {
  const child = new Deno.Command(denoCommand(), {
    args: [
      "eval",
      `import { onInterrupt } from ${JSON.stringify(import.meta.resolve("./interrupt.ts"))};
       const { promise, resolve } = Promise.withResolvers();
       {
         using _listening = onInterrupt(resolve);
         console.log("ready");
         await Promise.race([promise, new Promise((fail) => setTimeout(() => fail(Deno.exit(1)), 300_000))]);
       }
       console.log("heard");
       Deno.exit(7);`,
    ],
    stdout: "piped",
  }).spawn();
  let said = "";
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    said += text;
    if (said === "ready\n") child.kill("SIGTERM");
  }
  assertEquals([said, (await child.status).code], ["ready\nheard\n", 7]);
});
