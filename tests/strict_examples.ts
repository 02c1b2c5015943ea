/** Loaded before every test: an example's `console.assert` that does not hold fails the example, not only prints. */
console.assert = (condition?: boolean, ...data: unknown[]) => {
  if (!condition) throw new Error(["Assertion failed", ...data].join(" "));
};
