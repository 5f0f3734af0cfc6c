" dpo.vim: colours for .dpo files.  Copy to ~/.vim/syntax/dpo.vim, and to ~/.vim/ftdetect/dpo.vim the line
"   autocmd BufRead,BufNewFile *.dpo setfiletype dpo
if exists("b:current_syntax")
  finish
endif

" Keywords are matches, not `syntax keyword`: before `=`, after `.` and after `as` they are plain names.
syntax match dpoStatement "\<\(use\|config\|require\|layer\|model\|quantize\|adapter\|train\)\>\(\s*=\)\@!"
syntax match dpoStatement "\<\(objective\|metric\|data\|run\|graph\|template\|variant\|weight\|return\)\>\(\s*=\)\@!"
syntax match dpoKeyword "\<\(for\|in\|if\|then\|else\|as\|from\|when\|and\|or\|not\|load\|bias\)\>\(\s*=\)\@!"
syntax match dpoKeyword "\<at\s\+start\>"
syntax match dpoConstant "\<\(true\|false\|on\|off\|none\|auto\|chosen\|rejected\|all_linear\)\>\(\s*=[^=]\)\@!"
syntax match dpoCall "\<\h\w*\ze("
syntax match dpoName "\.\@<=\h\w*"
syntax match dpoName "\(\<as\s\+\)\@<=\h\w*"
syntax match dpoNumber "\<\d\+\(\.\d\+\)\?\([eE][-+]\?\d\+\)\?\(%\|k\>\|\s*[KMGTk]i\?B\>\)\?"
syntax match dpoEscape contained "\\["\\nt]"
syntax region dpoString start=+"+ skip=+\\.+ end=+"+ oneline contains=dpoEscape
syntax match dpoComment "#.*$" contains=@Spell

highlight default link dpoStatement Statement
highlight default link dpoKeyword Keyword
highlight default link dpoConstant Constant
highlight default link dpoCall Function
highlight default link dpoNumber Number
highlight default link dpoEscape SpecialChar
highlight default link dpoString String
highlight default link dpoComment Comment

setlocal commentstring=#\ %s
let b:current_syntax = "dpo"
