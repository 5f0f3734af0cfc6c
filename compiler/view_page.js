'use strict';
// What is picked is coloured wherever one of its origins is (view_html.c says what ids and data-o mean).
const byOrigin = new Map(), bySource = new Map(), status = document.getElementById('picked');
const add = (map, key, value) => map.has(key) ? map.get(key).push(value) : map.set(key, [value]);
const origins = line => line.dataset.o ? line.dataset.o.split(' ') : bySource.get(line.id) || [];
for (const line of document.querySelectorAll('.lines li[data-o]'))
    for (const o of line.dataset.o.split(' ')) add(byOrigin, o, line);
for (const o of document.querySelectorAll('#origins li')) {
    add(bySource, o.dataset.s, o.id.slice(1));
    add(byOrigin, o.id.slice(1), document.getElementById(o.dataset.s));
}
for (const list of document.querySelectorAll('.lines')) {
    list.setAttribute('role', 'listbox');
    for (const line of list.children) line.setAttribute('role', line.className ? 'presentation' : 'option');
}

let here = null;
const listOf = line => line.closest('.lines');
const values = line => line.textContent.match(/%\d+/g) || [];

// Scrolls the line's own list, and where that does not scroll its section.
function reveal(line) {
    for (const box of [listOf(line), line.closest('section')]) {
        const a = line.getBoundingClientRect(), b = box.getBoundingClientRect();
        if (a.top < b.top || a.bottom > b.bottom) box.scrollTop += a.top - b.top - b.height / 3;
    }
}

function clear() {
    for (const line of document.querySelectorAll('main .on, main .in, main .out, main .here'))
        line.classList.remove('on', 'in', 'out', 'here');
    if (here) here.removeAttribute('aria-selected');
    here = null;
    status.textContent = 'nothing is picked';
}

// What the line reads, and what reads it, in its own column.
function neighbours(line) {
    const [self, ...reads] = values(line);
    if (!self) return;
    for (const other of listOf(line).children) {
        const [name, ...its] = values(other);
        if (other === line || !name) continue;
        if (reads.includes(name)) other.classList.add('in');
        else if (its.includes(self)) other.classList.add('out');
    }
}

function pick(line) {
    clear();
    here = line;
    const own = origins(line), seen = new Set();
    if (listOf(line).classList.contains('source') === false) neighbours(line);
    for (const o of own)
        for (const other of byOrigin.get(o) || []) {
            other.classList.add('on');
            const list = listOf(other);
            if (!seen.has(list) && list !== listOf(line)) reveal(other);
            seen.add(list);
        }
    line.classList.add('here');
    line.setAttribute('aria-selected', 'true');
    const list = listOf(line);
    if (!line.id) line.id = 'picked-line';
    list.setAttribute('aria-activedescendant', line.id);
    reveal(line);
    const places = own.map(o => document.getElementById('o' + o).textContent);
    status.textContent = line.textContent.trim() + (places.length ? '  from ' + places.join(', ') : '');
}

// The next line of the list that can be picked.
function step(line, by) {
    do line = by > 0 ? line.nextElementSibling : line.previousElementSibling;
    while (line && line.classList.contains('group'));
    return line;
}

// The same value in the next column that has it: first one of the same op.
function across(line, by) {
    const lists = [...document.querySelectorAll('.lines')], own = origins(line);
    const op = (line.textContent.match(/= (\w+)/) || [])[1];
    for (let i = lists.indexOf(listOf(line)) + by; i >= 0 && i < lists.length; i += by) {
        const there = [...lists[i].children].filter(l => origins(l).some(o => own.includes(o)));
        const same = there.find(l => l.textContent.includes('= ' + op + ' ')) || there[0];
        if (same) return same;
    }
    return null;
}

document.querySelector('main').addEventListener('click', event => {
    const line = event.target.closest('.lines li');
    if (line && !line.classList.contains('group')) line === here ? clear() : pick(line);
});
document.addEventListener('keydown', event => {
    if (event.key === 'Escape') clear();
    const list = document.activeElement.closest('.lines'), by = event.key === 'ArrowDown' || event.key === 'ArrowRight' ? 1 : -1;
    if (!list || event.ctrlKey || event.metaKey || event.altKey || !event.key.startsWith('Arrow')) return;
    event.preventDefault();
    const inside = here && listOf(here) === list, sideways = event.key === 'ArrowLeft' || event.key === 'ArrowRight';
    const next = !inside ? list.querySelector('li:not(.group)') : sideways ? across(here, by) : step(here, by);
    if (!next) return;
    if (listOf(next) !== list) {
        listOf(next).focus({preventScroll: true});
        next.closest('section').scrollIntoView({block: 'nearest', inline: 'nearest'});
    }
    pick(next);
});
