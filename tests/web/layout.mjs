// What can be measured of a page's looks. Everything here runs inside the page.

/** Lists what is cut off, overlaps, or is too faint to read. */
export function flaws() {
  const found = [];
  const name = (node) => `${node.tagName.toLowerCase()}${node.id && `#${node.id}`} "${(node.textContent || node.placeholder || "").trim().slice(0, 30)}"`;
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) found.push(`the page is ${page.scrollWidth} px wide`);
  if (page.scrollHeight > page.clientHeight) found.push(`the page is ${page.scrollHeight} px high`);

  const hasText = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  const isControl = (node) => node.matches("button, input, select, textarea");
  const inside = (node) => node.closest("svg, noscript, .sr-only, option");
  const shown = [...document.body.querySelectorAll("*")].filter(
    (node) => !inside(node) && node.checkVisibility() && (hasText(node) || isControl(node)),
  );

  // What is scrolled out of sight neither overlaps nor is cut off.
  const visible = (node) => {
    const box = node.getBoundingClientRect();
    let { left, right, top, bottom } = box;
    for (let up = node.parentElement; up; up = up.parentElement) {
      if (getComputedStyle(up).overflowY === "visible") continue;
      const frame = up.getBoundingClientRect();
      top = Math.max(top, frame.top);
      bottom = Math.min(bottom, frame.bottom);
    }
    return { left, right, top, bottom, node };
  };
  const boxes = shown.map(visible).filter((box) => box.bottom > box.top);
  for (const { node, left, right, bottom } of boxes) {
    if (left < 0 || right > innerWidth || bottom > innerHeight) found.push(`${name(node)} leaves the window`);
    const scrolls = getComputedStyle(node).overflowX === "auto";
    if (!scrolls && node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0) found.push(`${name(node)} is cut off`);
  }
  boxes.forEach((one, at) => {
    for (const two of boxes.slice(at + 1)) {
      if (one.node.contains(two.node) || two.node.contains(one.node)) continue;
      const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
      const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
      if (wide > 1 && high > 1) found.push(`${name(one.node)} overlaps ${name(two.node)}`);
    }
  });

  // WCAG 2.2, relative luminance and contrast ratio.
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const contrast = (one, two) => {
    const [dark, bright] = [luminance(one), luminance(two)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const ground = (node) => {
    for (let up = node; up; up = up.parentElement) {
      const color = channels(getComputedStyle(up).backgroundColor);
      if (color[3] !== 0) return color;
    }
    throw new Error("the page has no ground");
  };
  const demand = (node, what, color, back, least) => {
    const ratio = contrast(channels(color), back);
    if (!(ratio >= least)) found.push(`${name(node)}: ${what} has contrast ${ratio.toFixed(2)}`);
  };
  for (const { node } of boxes) {
    demand(node, "text", getComputedStyle(node).color, ground(node), 4.5);
    if (node.placeholder) demand(node, "placeholder", getComputedStyle(node, "::placeholder").color, ground(node), 4.5);
    // A field is known by its edge.
    if (node.matches("input, select, textarea")) {
      demand(node, "edge", getComputedStyle(node).borderTopColor, ground(node.parentElement), 3);
    }
  }
  return found;
}

/** Whether a live region holds an answer, which would be read out word by word. */
export function chatters() {
  const live = "[aria-live=polite], [aria-live=assertive], [role=alert], [role=status], [role=log]";
  return [...document.querySelectorAll(live)].some((node) => node.querySelector(".text"));
}
