import { word } from './word.js';

const show = (text) => { document.getElementById('word').textContent = text; };
show(word);
import.meta.hot.accept('./word.js', (fresh) => show(fresh.word));
