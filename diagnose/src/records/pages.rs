//! Pages of a Parquet column, checked before the parquet crate decodes them.
//!
//! The parquet crate (60.1) panics on some damaged files. Of 3 changes to each byte of a small file, 68
//! made it panic (2026-11-29): 47 by a negative offset or length of a column, 20 by values of a dictionary
//! without the dictionary, and 1 by packed values that end early. The first two are errors here. The last
//! is deep in the decoder.

use ::parquet::basic::Encoding;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::column::reader::{ColumnReader, get_column_reader};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::reader::RowGroupReader;

/// The reader of column `at` of a row group.
///
/// Errors: a column that does not lie in the file, and those of opening it.
pub(super) fn column(group: &dyn RowGroupReader, at: usize) -> Result<ColumnReader> {
    let found = group.metadata().column(at);
    let start = found.dictionary_page_offset().unwrap_or(found.data_page_offset());
    if start < 0 || found.compressed_size() < 0 {
        let detail = format!("column {at} lies at {start} with {} bytes", found.compressed_size());
        return Err(ParquetError::General(detail));
    }
    let pages = Box::new(Checked { pages: group.get_column_page_reader(at)?, dictionary: false });
    Ok(get_column_reader(group.metadata().schema_descr().column(at), pages))
}

/// Pages whose values are in a dictionary only behind the page with that dictionary.
struct Checked {
    pages: Box<dyn PageReader>,
    dictionary: bool,
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        #[allow(deprecated)]
        let by_dictionary = [Encoding::PLAIN_DICTIONARY, Encoding::RLE_DICTIONARY];
        match &page {
            Some(Page::DictionaryPage { .. }) => self.dictionary = true,
            Some(page) if !self.dictionary && by_dictionary.contains(&page.encoding()) => {
                return Err(ParquetError::General("a page lacks its dictionary".into()));
            }
            _ => {}
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

impl Iterator for Checked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}
