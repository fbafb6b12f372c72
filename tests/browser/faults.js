// Essential rules of accessible pages; a list of what breaks them. Contrast is that of the colours as they are drawn.
() => {
  const found = [];
  const told = (one) => `${one.tagName.toLowerCase()}${one.id ? "#" + one.id : ""}.${one.className?.baseVal ?? one.className}`;
  const say = (rule, one) => found.push(`${rule}: ${told(one)} ${(one.textContent ?? "").trim().slice(0, 40)}`);
  const seen = (one) => one.checkVisibility({ visibilityProperty: true }) && one.getClientRects().length > 0;
  const named = (one) =>
    (one.getAttribute("aria-label") || one.textContent || one.getAttribute("title") || one.dataset.title ||
      [...(one.labels ?? [])].map((label) => label.textContent).join("") || "").trim() !== "";

  if (!document.documentElement.lang) found.push("no language");
  if (document.querySelectorAll("main").length !== 1) found.push("not one main part");
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  let level = 0;
  for (const head of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    if (!seen(head)) continue;
    const next = Number(head.tagName[1]);
    if (next > level + 1) say(`heading jumps from ${level} to ${next}`, head);
    level = next;
  }
  for (const image of document.querySelectorAll("img, canvas")) {
    const box = image.closest('[role="img"][aria-label], [role="group"][aria-label]');
    if (!image.getAttribute("alt") && !image.getAttribute("aria-label") && !box) say("no text in place of", image);
  }
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.querySelectorAll("thead th")];
    if (!table.caption?.textContent.trim() && !table.closest('[role="region"][aria-label]')) say("no caption", table);
    if (seen(table) && !heads.length) say("no heads", table);
    for (const head of heads) if (head.scope !== "col") say("no scope", head);
    for (const row of table.tBodies[0].rows) if (row.cells[0].scope !== "row") say("no head of the row", row);
  }
  for (const control of document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")) {
    if (!seen(control)) continue;
    if (!named(control)) say("no name", control);
    if (control.tabIndex < 0 && !control.hasAttribute("tabindex")) say("not reached by the keyboard", control);
  }
  for (const box of document.querySelectorAll("body *")) {
    if (box.closest("svg") || !seen(box)) continue;
    const scrolls = /auto|scroll/.test(getComputedStyle(box).overflowX) && box.scrollWidth > box.clientWidth + 1;
    if (scrolls && box.tabIndex < 0 && !box.querySelector("a[href], button, input, select")) say("scrolls without keys", box);
  }

  const parse = (text) => {
    const numbers = text.match(/[\d.]+/g).map(Number);
    return { rgb: numbers.slice(0, 3), alpha: numbers.length > 3 ? numbers[3] : 1 };
  };
  const over = (top, below) => top.rgb.map((one, at) => one * top.alpha + below[at] * (1 - top.alpha));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((one) => (one / 255 <= 0.04045 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const paper = (one) => {
    const above = [];
    for (let at = one; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      above.push(colour);
      if (colour.alpha === 1) break;
    }
    return above.reduceRight((below, colour) => over(colour, below), dark ? [18, 18, 18] : [255, 255, 255]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const judged = new Set();
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || judged.has(one) || one.closest("svg, script, style, option") || !seen(one)) continue;
    judged.add(one);
    const look = getComputedStyle(one);
    const large = parseFloat(look.fontSize) >= 24 || (parseFloat(look.fontSize) >= 18.66 && Number(look.fontWeight) >= 700);
    const below = paper(one);
    const got = ratio(over(parse(look.color), below), below);
    if (got < (large ? 3 : 4.5)) say(`contrast ${got.toFixed(2)}`, one);
  }

  // Words of figures: ink that the theme turns, ink on shaded cells, or white on slices.
  const ink = ["#1f2933", "#102a43", "#ffffff", "white"];
  for (const image of document.querySelectorAll('figure img[src^="data:image/svg"]')) {
    const text = new TextDecoder().decode(Uint8Array.from(atob(image.src.split(",")[1]), (one) => one.charCodeAt(0)));
    for (const one of new DOMParser().parseFromString(text, "image/svg+xml").querySelectorAll("text")) {
      const fill = /fill: ([^;]+)/.exec(one.getAttribute("style") ?? "")?.[1] ?? "#000000";
      if (!ink.includes(fill)) found.push(`words of a figure in ${fill}: ${image.closest("figure").dataset.name} ${one.textContent}`);
    }
  }
  return found.slice(0, 40);
}
